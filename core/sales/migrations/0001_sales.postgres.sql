-- What each node has sold in all; cents is money as an bigint.
create table store_total (
    node text not null primary key,
    sales bigint not null,
    lines bigint not null,
    cents bigint not null
);

-- The same per day; day is YYYY-MM-DD, the UTC day on which the sale happened.
create table day_total (
    node text not null,
    day text not null,
    sales bigint not null,
    lines bigint not null,
    cents bigint not null,
    primary key (node, day)
);
