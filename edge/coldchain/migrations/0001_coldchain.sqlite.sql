-- The fridges: the latest reading (by its own time, in microseconds since 1970), the limit, and since when the alarm is
-- raised; null where there is none.
create table fridge (
    fridge text primary key,
    at integer,
    milli_degrees integer,
    max_milli_degrees integer,
    hysteresis integer not null default 0,
    alarm_since integer
) strict, without rowid;

-- The latest readings of each fridge: the same one again is known by its time. event is the message id.
create table reading (
    id integer primary key autoincrement,
    fridge text not null,
    at integer not null,
    milli_degrees integer not null,
    event text not null,
    unique (fridge, at)
) strict;

create index reading_of_fridge on reading (fridge, id);

-- Alarms as they were raised and cleared; at the reading's time.
create table alarm (
    id integer primary key autoincrement,
    fridge text not null,
    raised_at integer not null,
    milli_degrees integer not null,
    max_milli_degrees integer not null,
    cleared_at integer
) strict;

create index alarm_of_fridge on alarm (fridge, id);
