-- What each node has sold in all; cents is money as an integer.
create table store_total (
    node text not null primary key,
    sales integer not null,
    lines integer not null,
    cents integer not null
) strict, without rowid;

-- The same per day; day is YYYY-MM-DD, the UTC day on which the sale happened.
create table day_total (
    node text not null,
    day text not null,
    sales integer not null,
    lines integer not null,
    cents integer not null,
    primary key (node, day)
) strict, without rowid;
