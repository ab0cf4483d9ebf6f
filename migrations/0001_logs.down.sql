DROP TABLE late_changes;
DROP TABLE dead_letters;
DROP TABLE ledger;
DROP TABLE logs;
