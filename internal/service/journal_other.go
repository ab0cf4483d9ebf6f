//go:build !linux

package service

import "io"

// toJournal reports false: systemd runs on Linux alone.
func toJournal(io.Writer) bool { return false }
