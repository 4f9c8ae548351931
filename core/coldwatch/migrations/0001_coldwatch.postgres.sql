-- The last minute of each fridge that closed, its coldest and warmest reading, and how many readings came too late for
-- their minute; one whose readings were all too late has no minute. Times are milliseconds since 1970, temperatures thousandths of a degree Celsius.
create table fridge (
    node text not null,
    fridge text not null,
    minute bigint,
    coldest bigint,
    warmest bigint,
    late bigint not null default 0,
    primary key (node, fridge)
);

-- Minutes with a reading that is not too warm, for as long as late readings may change what is around them.
create table cold_minute (
    node text not null,
    fridge text not null,
    minute bigint not null,
    primary key (node, fridge, minute)
);

-- Stretches of minutes in which every reading was too warm. alert is the message id of the event that told of it.
create table stretch (
    node text not null,
    fridge text not null,
    opens bigint not null,
    closes bigint not null,
    warmest bigint not null,
    alert text,
    primary key (node, fridge, opens)
);

create index stretch_alerted on stretch (opens) where alert is not null;
