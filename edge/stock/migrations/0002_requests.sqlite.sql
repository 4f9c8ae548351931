-- When a request was made, in seconds since 1970: they are forgotten after a month. Those of an older release have 0, and
-- count as made when the next one is.
alter table request add column made_at integer not null default 0;

create index request_by_age on request (made_at);
