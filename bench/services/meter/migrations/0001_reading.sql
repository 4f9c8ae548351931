create table reading (
    id integer primary key,
    meter text not null,
    number bigint not null,
    cents bigint not null
);
