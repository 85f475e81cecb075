"""Incidents: experiments find out what was at fault, and the findings are acted on."""
