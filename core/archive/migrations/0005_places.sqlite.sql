-- Where the events of an epoch are, and those of a node: narrow indexes, kept by the archive itself for many events at a
-- time (core/archive/places.py). They take the place of archived_place and archived_node, which are dropped once every
-- event is in here: nothing that is large is done by this migration.

-- Numbers that stand for long names.
create table origin (
    no integer primary key,
    epoch text not null,
    node text not null,
    service text not null,
    unique (epoch, node, service)
) strict;
create table source (
    no integer primary key,
    node text not null,
    service text not null,
    type text not null,
    unique (node, service, type)
) strict;

-- An event by its place; archived is its id there. Events of producers without an outbox have none.
create table place (
    origin integer not null,
    sequence integer not null,
    archived integer not null,
    primary key (origin, sequence, archived)
) strict, without rowid;

-- The listing of a node, in order.
create table listed (
    source integer not null,
    archived integer not null,
    primary key (source, archived)
) strict, without rowid;

-- The id up to which all events are in there.
create table indexed (
    one integer primary key check (one = 1),
    upto integer not null
) strict;
insert into indexed (one, upto) values (1, 0);
