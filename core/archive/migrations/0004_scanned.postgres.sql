-- When somebody last read the archive in its own order, in milliseconds since 1970: nothing is deleted for a while.
create table scanned (
    one integer primary key check (one = 1),
    at bigint not null
);
