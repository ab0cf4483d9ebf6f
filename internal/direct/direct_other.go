//go:build !linux

package direct

import "net"

// Conn exists so that callers compile; on other systems than Linux none is
// ever made.
type Conn struct{ net.Conn }

// New returns conn itself.
func New(conn net.Conn) net.Conn { return conn }

// Try writes nothing.
func (c *Conn) Try([]byte) int { return 0 }
