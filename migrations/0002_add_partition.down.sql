DROP FUNCTION millrace_add_partition(regclass, text, text, text);
