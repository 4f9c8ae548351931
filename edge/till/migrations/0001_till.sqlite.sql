-- The sales as they were rung up; lines is JSON. event is the message id of the sale's event.
create table sale (
    basket text primary key,
    household integer not null,
    at text not null,
    day text not null,
    lines text not null,
    line_count integer not null,
    cents integer not null,
    event text not null
) strict, without rowid;

-- The totals of a day are read from this index alone.
create index sale_of_day on sale (day, line_count, cents);
