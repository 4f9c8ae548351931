-- The epochs that every event of their origin may have to do with: a node that was restarted ten thousand times has as
-- many, and few of them wait for anything. By an expression, as SQLite prefers the primary key to any index on its columns.
drop index forebay_inbox_waiting;

create index forebay_inbox_waiting on forebay_inbox ((node || '/' || service))
  where held <> '[]' or decided <> '{}' or abandoned_after is not null;
