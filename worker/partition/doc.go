// Package partition looks after the partitions of logs and of the ledger.
package partition
