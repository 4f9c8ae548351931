-- What is to happen at a time: one row for each timer that is set, gone in the transaction in which it fires. deadline
-- and due_at are milliseconds since 1970; due_at is later than the deadline once an attempt has failed, with its error.
create table forebay_timer (
    owner text not null,
    instance text not null,
    name text not null,
    deadline bigint not null,
    due_at bigint not null,
    attempts bigint not null default 0,
    error text,
    primary key (owner, instance, name)
);

create index forebay_timer_due on forebay_timer (owner, due_at);
