"""From patterns and JSON schemas to finite automata: sets of characters, machines over them, their bytes in UTF-8."""
