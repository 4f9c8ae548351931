-- Another body under a message id that is archived: kept aside as it came, counted and reported, never applied (a broker
-- or a producer has gone wrong, or somebody forges). The digest keeps a copy that is read again from being kept again.
create table conflict (
    id integer primary key autoincrement,
    archived integer not null references archived (id),
    digest text not null unique,
    type text not null,
    time text not null,
    attributes text,
    body blob not null,
    seen_at integer not null
) strict;
