"""Incidents: experiments find out what was at fault, the findings are acted on, and records of them are written."""
