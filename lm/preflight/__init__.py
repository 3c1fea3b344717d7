"""Before the first step: what a compiled step holds, costs and needs, and what to change where it does not fit."""
