-- The id up to which all events are in indexes that the archive keeps itself. On PostgreSQL it keeps none: the table is
-- empty, and archived_place and archived_node serve.
create table indexed (
    one integer primary key check (one = 1),
    upto bigint not null
);
