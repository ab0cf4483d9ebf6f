-- What fires is resolved nowhere: Alertmanager forgets it by itself.
DROP TABLE millrace_search_messages, millrace_search_changes, millrace_searches;
