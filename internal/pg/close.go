package pg

import (
	"context"
	"time"
)

// closeTimeout bounds the closing of a connection whose server may not answer.
const closeTimeout = time.Second

// Close closes a connection within a second, also after ctx is done. conn is a pgx.Conn or a pgconn.PgConn. The error is dropped: a
// transaction that the connection was in is not committed, whatever the answer would be.
func Close(ctx context.Context, conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}
