-- What the retention deleted, per epoch as ranges, both ends included; ranges that touch are joined.
create table deleted (
    node text not null,
    service text not null,
    epoch text not null,
    first integer not null,
    last integer not null,
    primary key (node, service, epoch, first)
) strict, without rowid;

-- The events of a day, and the oldest ones.
create index archived_at on archived (archived_at, id);
