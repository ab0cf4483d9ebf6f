// Command pause keeps the namespaces of a pod until it is told to end, and takes leave of the processes that are orphaned
// in them.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end, orphan := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(orphan, syscall.SIGCHLD)
	for {
		select {
		case <-end:
			return
		case <-orphan:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}
