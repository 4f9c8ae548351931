create table effect (
    position bigint generated always as identity primary key,
    node text not null,
    number bigint not null,
    cents bigint not null
);
