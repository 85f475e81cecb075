"use strict";
// Draws the page from the one object of data in it. Texts only ever become text nodes; nothing is loaded.
const NUMBER_ROWS = 25;

function add(node, fields, children) {
  for (const [name, value] of Object.entries(fields || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(2)) if (child || child === 0) node.append(child);
  return node;
}
const html = (tag, fields, ...children) => add(document.createElement(tag), fields, children);
const shape = (tag, fields, ...children) =>
  add(document.createElementNS("http://www.w3.org/2000/svg", tag), fields, children);
const known = value => value !== null && value !== undefined;

function number(value) {
  if (!known(value)) return "-";
  if (typeof value !== "number") return value;
  const size = Math.abs(value);
  return size >= 1000 && size < 1e9 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

// Round values from low to high, as many as there is room for.
function ticks(low, high, most, isLog) {
  const found = [];
  if (isLog) {
    for (const factors of [[1, 2, 5], [1]]) {
      found.length = 0;
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        found.push(...factors.map(factor => factor * 10 ** power).filter(value => value >= low && value <= high));
      if (found.length >= 2 && found.length <= most) return found;
    }
    if (found.length > most) return found.filter((_, place) => place % Math.ceil(found.length / most) === 0);
    found.length = 0;
  }
  const power = 10 ** Math.floor(Math.log10((high - low) / most));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(each => (high - low) / each <= most);
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++)
    found.push(Number((place * step).toPrecision(12)));
  return found;
}

// An axis from values to pixels.
function axis(low, high, start, end, isLog) {
  if (!(high > low)) [low, high] = isLog ? [low / 2, low * 2] : [low - (Math.abs(low) || 1) / 2, low + (Math.abs(low) || 1) / 2];
  const of = isLog ? value => Math.log(Math.max(value, low)) : value => value;
  const at = value => start + (of(value) - of(low)) / (of(high) - of(low)) * (end - start);
  const back = pixel => low + (pixel - start) / (end - start) * (high - low);
  return {low, high, start, end, at, back};
}

// The places of a curve, in runs between values that are not known.
function runs(xs, ys, x, y) {
  const found = [[]];
  xs.forEach((value, place) => {
    if (known(ys[place])) found.at(-1).push(`${x.at(value).toFixed(1)},${y.at(ys[place]).toFixed(1)}`);
    else if (found.at(-1).length) found.push([]);
  });
  return found.filter(each => each.length);
}

// How the value reads at a place: that of the nearest known point.
function nearest(one, place) {
  let best = -1;
  one.x.forEach((value, index) => {
    if (known((one.y || one.high)[index]) && (best < 0 || Math.abs(value - place) < Math.abs(one.x[best] - place))) best = index;
  });
  return best;
}

const look = one => one.look || "c0";
const fill = one => look(one).replace("c", "f");

function swatch(one) {
  const box = shape("svg", {width: 22, height: 10, class: "spark"});
  if (one.kind === "mark") box.append(shape("path", {class: `mark ${one.look || ""}`, d: "M11,0V10"}));
  else if (one.kind === "saved") box.append(shape("path", {class: "saved", d: "M11,4V10"}));
  else if (one.kind === "best") box.append(shape("circle", {class: `ring ${look(one)}`, cx: 11, cy: 5, r: 3.5}));
  else if (one.bars || (one.low && !one.y)) box.append(shape("rect", {class: `bar ${fill(one)}`, width: 12, height: 10, x: 5}));
  else box.append(shape("path", {class: `line ${look(one)} ${one.kind || ""}`, d: "M0,5H22"}));
  return html("span", {class: "key"}, box, one.name);
}

function chart(spec) {
  const view = {log: Boolean(spec.log), whole: !spec.fit, span: null};
  const said = html("p", {class: "said"}), keys = html("div", {class: "keys"}), box = html("div", {class: "chart"}, keys);
  const canLog = spec.series.every(one => !one.bars && (one.y || one.low).every(value => !known(value) || value > 0));
  const button = (text, field, change) => html("button", {"aria-pressed": String(Boolean(view[field])), onclick: () => {
    change(); draw(); }}, text);
  let picture = null, pressed = null, width = 0;

  function draw() {
    width = box.clientWidth || 900;
    const shown = [...spec.series, ...(spec.legend || [])];
    keys.replaceChildren(...(shown.length > 1 ? shown.map(swatch) : []), html("span", {style: "flex:1"}),
      spec.log === undefined || !canLog ? "" : button("log", "log", () => { view.log = !view.log; }),
      spec.fit ? button("whole range", "whole", () => { view.whole = !view.whole; }) : "",
      view.span ? button("whole run", "none", () => { view.span = null; }) : "");
    const every = spec.series.flatMap(one => one.x), marks = (spec.marks || []).filter(one => one.label || one.text);
    const [from, to] = view.span || [spec.from ?? Math.min(...every), spec.to ?? Math.max(...every)];
    const ends = spec.ends ? spec.series.filter(one => one.y.some(known)) : [];
    const right = ends.length ? Math.min(190, 14 + 6.6 * Math.max(...ends.map(one => one.name.length))) : 16;
    const x = axis(from, to, 58, width - right, spec.logx);
    // Rows of the labels of marks: each in the first where it has room.
    const rows = [], placed = [];
    for (const mark of marks.filter(one => one.x >= from && one.x <= to)) {
      const size = 6.7 * (mark.label || "").length + 8, at = x.at(mark.x);
      const isLeft = at + size > width, begin = isLeft ? at - size : at;
      let row = rows.findIndex(row => row.every(([a, b]) => begin > b || begin + size < a));
      if (row < 0) row = rows.push([]) - 1;
      if (mark.label && row < 4) rows[row].push([begin, begin + size]);
      placed.push({mark, at, isLeft, row});
    }
    const top = 10 + 14 * Math.min(4, rows.filter(row => row.length).length), bottom = (spec.height || 230) + top;
    let values = spec.series.flatMap(one => [one.y, one.low, one.high].filter(Boolean).flatMap(
      column => column.filter((value, place) => known(value) && (!view.span || (one.x[place] >= from && one.x[place] <= to)))));
    if (view.log) values = values.filter(value => value > 0);
    let low = Math.min(...values), high = Math.max(...values);
    if (spec.range) [low, high] = spec.range;
    else if (!view.whole && !view.span && spec.fit) [low, high] = spec.fit;
    if (view.log && !(low > 0)) low = Math.min(...values);
    const room = view.log || spec.range ? 0 : 0.04 * (high - low);
    const y = axis(low - (low === 0 ? 0 : room), high + room, bottom, top, view.log);
    const parts = [], clip = `clip-${chart.count = (chart.count || 0) + 1}`;
    for (const value of ticks(y.low, y.high, Math.max(2, Math.floor((bottom - top) / 38)), view.log)) parts.push(
      shape("path", {class: "grid", d: `M${x.start},${y.at(value).toFixed(1)}H${x.end}`}),
      shape("text", {x: x.start - 8, y: y.at(value) + 4, "text-anchor": "end"}, number(value)));
    for (const value of ticks(x.low, x.high, Math.max(2, Math.floor((x.end - x.start) / 110)), spec.logx)) parts.push(
      shape("path", {class: "axis", d: `M${x.at(value).toFixed(1)},${bottom}v4`}),
      shape("text", {x: x.at(value), y: bottom + 17, "text-anchor": "middle"}, number(value)));
    parts.push(shape("path", {class: "axis", d: `M${x.start},${bottom}H${x.end}`}),
      shape("text", {x: x.start - 8, y: bottom + 17, "text-anchor": "end"}, spec.x_name || ""));
    if (spec.saved) parts.push(shape("path", {class: "saved", d: spec.saved.filter(step => step >= from && step <= to).map(
      step => `M${x.at(step).toFixed(1)},${bottom}v-6`).join("")}));
    const curves = shape("g", {"clip-path": `url(#${clip})`});
    for (const one of spec.series) {
      if (one.bars) one.x.forEach((value, place) => one.y[place] && curves.append(shape("rect", {class: `bar ${fill(one)}`,
        x: x.at(value - one.bars / 2) + .5, width: Math.max(1, x.at(value + one.bars / 2) - x.at(value - one.bars / 2) - 1),
        y: y.at(one.y[place]), height: bottom - y.at(one.y[place])}, shape("title", {}, `${number(one.y[place])} at ${number(value)}`))));
      else if (one.low) {
        const up = runs(one.x, one.high, x, y).flat(), down = runs(one.x, one.low, x, y).flat();
        curves.append(shape("polygon", {class: `band ${one.y ? fill(one) : look(one) + " q"}`, points: [...up, ...down.reverse()].join(" ")}));
      }
      if (one.y && !one.bars) {
        for (const run of runs(one.x, one.y, x, y)) curves.append(run.length > 1
          ? shape("polyline", {class: `line ${look(one)} ${one.kind || ""}`, points: run.join(" ")})
          : shape("circle", {class: fill(one), cx: run[0].split(",")[0], cy: run[0].split(",")[1], r: 2.6}));
        if (one.dots && one.x.length <= 60) one.x.forEach((value, place) => known(one.y[place]) && curves.append(
          shape("circle", {class: fill(one), cx: x.at(value), cy: y.at(one.y[place]), r: 2.4})));
      }
    }
    parts.push(shape("clipPath", {id: clip}, shape("rect", {x: x.start, width: x.end - x.start, y: top - 4, height: bottom - top + 4})), curves);
    for (const {mark, at, isLeft, row} of placed) {
      const kind = mark.look || "", high = top - 6 - 14 * row;
      parts.push(shape("path", {class: `mark ${kind}`, d: `M${at.toFixed(1)},${mark.label && row < 4 ? high : top}V${bottom}`},
        shape("title", {}, mark.text || mark.label)));
      if (mark.label && row < 4) parts.push(shape("text", {class: `said-mark ${kind}`, x: at + (isLeft ? -4 : 4), y: high + 6,
        "text-anchor": isLeft ? "end" : "start"}, mark.label));
    }
    for (const point of (spec.points || []).filter(one => one.x >= from && one.x <= to)) {
      const at = x.at(point.x), up = Math.min(Math.max(y.at(point.y), top), bottom), isLeft = at > (x.start + x.end) / 2;
      parts.push(shape("circle", {class: `ring ${look(point)}`, cx: at, cy: up, r: 4.5}), shape("text", {class: "said-best",
        x: at + (isLeft ? -9 : 9), y: Math.max(up - 6, top + 8), "text-anchor": isLeft ? "end" : "start"}, point.label));
    }
    // The names of curves at their ends, none over another.
    let free = top;
    ends.map(one => [y.at(one.y.findLast(known)), one]).sort((a, b) => a[0] - b[0]).forEach(([at, one]) => {
      free = Math.max(at, free + 13);
      parts.push(shape("text", {class: `${fill(one)}`, x: x.end + 6, y: free + 4}, one.name));
    });
    const cursor = shape("path", {class: "cursor"}), picked = shape("rect", {class: "picked", y: top, height: bottom - top, width: 0});
    const place = event => Math.min(Math.max(event.clientX - picture.getBoundingClientRect().left, x.start), x.end);
    const next = shape("svg", {width, height: bottom + 26, role: "img", "aria-label": spec.name,
      onpointermove: event => {
        const at = place(event), value = spec.logx ? null : x.back(at);
        cursor.setAttribute("d", `M${at},${top}V${bottom}`);
        if (pressed !== null) add(picked, {x: Math.min(at, pressed), width: Math.abs(at - pressed)}, []);
        if (value === null) return;
        const said_of = spec.series.filter(one => !one.bars).map(one => {
          const index = nearest(one, value);
          if (index < 0) return "";
          const range = one.low ? `${number(one.low[index])} to ${number(one.high[index])}` : "";
          return `${one.name} ${one.y ? number(one.y[index]) + (range && ` (${range})`) : range}`; });
        said.textContent = [`${spec.x_name || "at"} ${number(value >= 100 ? Math.round(value) : value)}`, ...said_of.filter(Boolean)].join(" · ");
      },
      onpointerleave: () => { cursor.setAttribute("d", ""); said.textContent = ""; pressed = null; },
      onpointerdown: event => { pressed = place(event); },
      onpointerup: event => {
        const ends = [pressed, place(event)].sort((a, b) => a - b);
        pressed = null;
        if (!spec.logx && ends[1] - ends[0] > 8) { view.span = ends.map(x.back); draw(); }
      },
      ondblclick: () => { view.span = null; draw(); }}, ...parts, picked, cursor);
    if (picture) picture.replaceWith(next); else box.append(next, said);
    picture = next;
  }
  draw();
  new ResizeObserver(() => { if (Math.abs(box.clientWidth - width) > 1) draw(); }).observe(box);
  window.addEventListener("beforeprint", draw);
  const numbers = html("details", {ontoggle: () => {
    if (numbers.childElementCount > 1) return;
    for (const one of spec.series) {
      const stride = Math.ceil(one.x.length / NUMBER_ROWS), columns = ["low", "y", "high"].filter(name => one[name]);
      const names = {low: "lowest", y: one.name, high: "highest"};
      numbers.append(table({columns: [spec.x_name || "at", ...columns.map(name => names[name])],
        rows: one.x.map((value, place) => [value, ...columns.map(name => one[name][place])]).filter(
          (row, place) => place % stride === 0 || place === one.x.length - 1)}));
    } }}, html("summary", {}, "numbers"));
  return [spec.title ? html("h3", {}, spec.title) : "", box, numbers];
}

function spark(values) {
  const shown = values.filter(known);
  if (shown.length < 2) return "";
  const x = axis(0, values.length - 1, 2, 94), y = axis(Math.min(0, ...shown), Math.max(...shown), 18, 2);
  return shape("svg", {width: 96, height: 20, class: "spark", "aria-hidden": "true"},
    runs(values.map((_, place) => place), values, x, y).map(run => shape("polyline", {class: "line c0", points: run.join(" ")})));
}

function cell(value) {
  if (typeof value !== "object" || value === null)
    return typeof value === "number" ? html("td", {class: "number"}, number(value)) : html("td", {}, known(value) ? value : "");
  if (value.spark) return html("td", {}, spark(value.spark));
  if (value.check) return html("td", {}, html("input", {type: "checkbox", "aria-label": value.check}));
  if (value.bold) return html("td", {class: "number"}, html("b", {}, number(value.bold)));
  return html("td", {class: value.share ? "number" : "number none",
    style: value.share ? `background:color-mix(in srgb,var(--alert) ${Math.ceil(50 * value.share)}%,transparent)` : null}, value.text);
}

function table(spec) {
  const first = spec.rows[0] || [];
  const head = html("tr", {}, spec.columns.map((name, place) => html("th", {class: typeof first[place] === "number" ? "number" : null}, name)));
  const rows = spec.rows.map((row, place) => html("tr", {class: (spec.levels || [])[place]}, row.map(cell)));
  for (const row of spec.levels ? rows : []) row.children[2].classList.add("level");
  return html("div", {class: spec.tall ? "wide tall" : "wide"},
    html("table", {class: spec.kind}, html("thead", {}, head), html("tbody", {}, rows)));
}

// A link that saves rows as CSV, in which a spreadsheet takes no text for a formula.
function save(spec) {
  const safe = value => typeof value === "string" ? `"${(/^[=+\-@\t\r]/.test(value) ? "'" : "") + value.replaceAll('"', '""')}"` : value ?? "";
  const text = () => [spec.columns, ...spec.rows].map(row => row.map(safe).join(",")).join("\n") + "\n";
  return html("a", {href: "#", download: spec.file, onclick: event => {
    event.currentTarget.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text())}`; }}, spec.say);
}

function card(one) {
  const labels = one.given || one.suggested ? html("b", {}, one.given || "?", one.suggested ? [" → ", html("span", {class: "better",
    title: one.votes ? `predicted at ${one.votes} visits or more` : null}, one.suggested)] : "") : "";
  return html("figure", {}, one.picture ? html("img", {src: one.picture, alt: `sample ${one.number}`}) : "", html("figcaption", {},
    labels, one.lines.map(line => [labels || line !== one.lines[0] ? html("br") : "", line]), html("br"), spark(one.history)));
}

const gallery = cards => html("div", {class: "gallery"}, cards.map(card));

// Every sample by two numbers; a click on a region shows its samples.
function map(spec) {
  const width = 560, high = 380, x = axis(0, spec.x, 58, width - 14), y = axis(spec.y[0], spec.y[1], high - 30, 12);
  const wide = (x.end - x.start) / spec.cells[0], tall = (y.start - y.end) / spec.cells[1], parts = [];
  for (const value of ticks(y.low, y.high, 8)) parts.push(shape("path", {class: "grid", d: `M${x.start},${y.at(value)}H${x.end}`}),
    shape("text", {x: x.start - 8, y: y.at(value) + 4, "text-anchor": "end"}, number(value)));
  for (const value of ticks(x.low, x.high, 5)) parts.push(shape("text", {x: x.at(value), y: high - 12, "text-anchor": "middle"}, number(value)));
  for (const [column, row, shade] of spec.counts) parts.push(shape("rect", {class: "cell f0", x: x.start + column * wide,
    y: y.start - (row + 1) * tall, width: wide + .2, height: tall + .2, "fill-opacity": shade}));
  for (const [name, along, up] of spec.circles) parts.push(shape("circle", {class: "suspect", cx: x.at(Math.min(along, x.high)),
    cy: y.at(Math.min(Math.max(up, y.low), y.high)), r: 2.6}, shape("title", {}, `${name}: mean ${number(up)}, varies by ${number(along)}`)));
  parts.push(shape("text", {x: x.start + 6, y: 22}, "mean margin"), shape("text", {x: x.end, y: high - 36, "text-anchor": "end"}, "how much it varies"));
  const lists = html("div", {});
  for (const one of spec.regions) {
    const [left, up, w, h] = one.box, list = html("div", {hidden: ""}, html("p", {class: "note"}, one.words, ". ",
      one.save ? save(one.save) : ""), gallery(one.cards));
    const box = shape("rect", {class: "box", x: x.start + left * (x.end - x.start), width: w * (x.end - x.start), tabindex: 0, role: "checkbox",
      "aria-checked": "false", "aria-label": one.words, y: y.end + up * (y.start - y.end), height: h * (y.start - y.end)}, shape("title", {}, one.words));
    const toggle = () => { list.hidden = !box.classList.toggle("on"); box.setAttribute("aria-checked", String(!list.hidden)); };
    add(box, {onclick: toggle, onkeydown: event => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); toggle(); } }}, []);
    parts.push(box);
    lists.append(list);
  }
  const picture = shape("svg", {viewBox: `0 0 ${width} ${high}`, role: "img", "aria-label": spec.name, width: "100%"}, ...parts);
  const box = html("div", {class: "wide"}, picture);
  // Where the picture is smaller than it is drawn, its letters are not.
  new ResizeObserver(() => picture.style.setProperty("--grow", Math.max(1, width / (box.clientWidth || width)))).observe(box);
  return [box, lists];
}

function incident(one) {
  return html("article", {class: `incident ${one.level}`}, html("b", {}, one.headline), " ", spark(one.losses || []),
    html("dl", {}, one.facts.map(([name, text]) => [html("dt", {}, name), html("dd", {}, text)])),
    one.tried.length ? html("details", {}, html("summary", {}, `${one.tried.length} events`),
      html("ol", {}, one.tried.map(([step, text]) => html("li", {}, `step ${number(step)}: ${text}`)))) : "");
}

const BLOCKS = {
  chart, table, gallery, map, save,
  text: text => html("p", {}, text), big: text => html("p", {class: "big"}, text), code: text => html("code", {}, text),
  cards: cards => html("dl", {class: "cards"}, cards.map(([name, value, more]) =>
    html("div", {}, html("dt", {}, name), html("dd", {}, value), html("p", {}, more)))),
  incidents: all => all.map(incident),
};

function section(one, place) {
  const body = one.blocks.flatMap(block => Object.entries(block).map(([kind, spec]) => [kind, spec]));
  const node = html("section", {id: `section-${place}`, class: one.kind}, one.title ? html("h2", {}, one.title) : "",
    one.note ? html("p", {class: "note"}, one.note) : "");
  // Charts measure the room that they have, so the section is in the page first.
  return [node, () => { for (const [kind, spec] of body) add(node, {}, [BLOCKS[kind](spec)]); }];
}

function draw(data) {
  const sections = data.sections.map(section), main = document.querySelector("main");
  main.replaceChildren(
    html("header", {}, html("p", {class: "brand"}, "learnit::r8"), html("h1", {}, data.title), data.state ? html("p", {
      class: `state ${data.state}`}, html("b", {}, data.state), data.detail ? html("small", {}, ` ${data.detail}`) : "") : "",
      html("p", {class: "what"}, data.what || "")),
    html("nav", {"aria-label": "contents"}, data.sections.map((one, place) => one.title ? html("a", {href: `#section-${place}`}, one.title) : "")),
    html("div", {class: "page"}, sections.map(([node]) => node)),
    html("footer", {}, (data.notes || []).map(note => html("p", {}, note))));
  for (const [, fillIn] of sections) fillIn();
}

draw(JSON.parse(document.getElementById("data").textContent));
