// Package lines reads what a client is to send.
package lines

import (
	"bufio"
	"errors"
	"os"
	"time"
)

// Batch is how many records a request is to have, so that a few records make several requests.
const Batch = 4

// Each calls f with each line of the file LOG_FILE. It pauses for PACE, a duration, after each.
func Each(f func(line []byte) error) (err error) {
	pace, err := time.ParseDuration(os.Getenv("PACE"))
	if err != nil {
		return err
	}
	file, err := os.Open(os.Getenv("LOG_FILE"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	s := bufio.NewScanner(file)
	for s.Scan() {
		if err := f(s.Bytes()); err != nil {
			return err
		}
		time.Sleep(pace)
	}
	return s.Err()
}
