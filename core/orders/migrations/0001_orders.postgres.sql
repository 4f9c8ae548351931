-- Orders as they were placed; lines is JSON, status what the customer is told, reason why it was cancelled. Times are
-- milliseconds since 1970.
create table placed_order (
    id text not null primary key,
    store text not null,
    lines text not null,
    cents bigint not null,
    status text not null check (status in ('placed', 'reserved', 'confirmed', 'cancelling', 'cancelled')),
    reason text,
    placed_at bigint not null
);

-- What is wanted from the payment provider, and what came of it; it is asked again at next_at.
create table payment (
    order_id text not null primary key references placed_order (id),
    cents bigint not null,
    status text not null check (status in ('wanted', 'taken', 'declined', 'return-wanted', 'returned')),
    attempts bigint not null default 0,
    next_at bigint not null default 0
);

create index payment_due on payment (next_at) where status in ('wanted', 'return-wanted');
