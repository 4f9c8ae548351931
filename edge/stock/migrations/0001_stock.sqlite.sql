-- What is kept for which order, until when (milliseconds since 1970): where the shelves' events are to be looked for.
create table kept (
    order_id text not null,
    product integer not null,
    quantity integer not null,
    until integer not null,
    primary key (order_id, product)
) strict, without rowid;

-- What clients asked for, under the names that they gave, with the first answer: both are JSON.
create table request (
    request text primary key,
    said text not null,
    answer text not null
) strict, without rowid;
