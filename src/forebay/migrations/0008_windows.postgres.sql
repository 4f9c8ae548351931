-- The open windows of a key: the fold of their events. scope is the node, or '' where the nodes' events are together;
-- opens and closes are milliseconds of event time. At due the watermark closes the window, or deletes one that was told
-- (its revision so many times; told is JSON, the spans under which receivers know it). content is the sum of digests of
-- the events' message ids: it names in causes what a result was made of (B5).
create table forebay_window (
    name text not null,
    scope text not null,
    key text not null,
    opens bigint not null,
    closes bigint not null,
    due bigint not null,
    state text not null,
    events bigint not null,
    content bigint not null,
    revision bigint not null,
    told text not null,
    primary key (name, scope, key, opens)
);

create index forebay_window_due on forebay_window (name, scope, due);

-- How far event time has come, and how many events were too late, or too far ahead, for a window.
create table forebay_watermark (
    name text not null,
    scope text not null,
    mark bigint not null,
    late bigint not null default 0,
    primary key (name, scope)
);

-- Where the nodes' events are together: how far each node is, when it was heard, and whether it holds back the others.
create table forebay_watermark_node (
    name text not null,
    node text not null,
    seen bigint not null,
    heard_at bigint not null,
    counts bigint not null,
    primary key (name, node)
);

-- How many milliseconds the core's clock is ahead of a node's, as the node has measured it.
create table forebay_clock_offset (
    node text not null primary key,
    ahead bigint not null,
    told_at bigint not null
);
