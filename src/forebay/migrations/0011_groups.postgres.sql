-- What a person asks of a consumer's state, left by anyone for the reader to execute (S7); one that cannot be read stays.
create table forebay_intent_waiting (
    id text primary key,
    intent text not null,
    left_at bigint not null,
    unreadable bigint not null default 0
);

-- When the partitions of a consumer had taken in everything that the archive had, where several processes share them (C5).
create table forebay_archive_taken (
    partition bigint primary key,
    taken_at bigint not null
);
