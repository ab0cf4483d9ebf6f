package sockets

import (
	"bytes"
	"errors"
)

// Framer finds the messages in what comes over one connection.
type Framer interface {
	// Next returns the first message of b, and how many bytes of b it takes with its frame. A nil message is none: n bytes are to be passed over, or, if n is 0, more
	// must come. ended tells that nothing more will come. cut tells that the message is only a beginning. An error says that no message can be found any more.
	Next(b []byte, ended bool) (message []byte, n int, cut bool, err error)
}

// errFraming says that a connection's bytes have no frames that are known.
var errFraming = errors.New("a message's length has too many digits, or no blank behind it")

// syslogFraming is how syslog goes over TCP, by RFC 6587. The first message of a connection that begins with a priority tells which way: with its length before it
// (octet counting), or with a newline behind it. Messages that are longer than most are cut.
type syslogFraming struct {
	most    int
	way     framing
	scanned int  // how many bytes at the beginning of the next message have no newline
	skip    int  // how many bytes of a counted message are still to be passed over
	isRest  bool // what comes up to the next newline is the rest of a message that was cut
}

type framing uint8

const (
	unknown framing = iota
	counted
	lines
)

// NewSyslogFramer returns a Framer of syslog's messages, of at most so many bytes.
func NewSyslogFramer(most int) Framer { return &syslogFraming{most: most} }

// mostLengthDigits is how many digits the length of a message may have. So a sender that is not understood can't have gigabytes passed over.
const mostLengthDigits = 8

// Next implements Framer.
func (f *syslogFraming) Next(b []byte, ended bool) (message []byte, n int, cut bool, err error) {
	if f.skip > 0 {
		n = min(f.skip, len(b))
		f.skip -= n
		return nil, n, false, nil
	}
	if f.way != lines && !f.isRest && f.scanned == 0 {
		for n < len(b) && f.way == counted && (b[n] == '\n' || b[n] == '\r' || b[n] == 0) {
			n++ // some senders put one between the messages
		}
		if n > 0 {
			return nil, n, false, nil
		}
		message, n, cut, isCounted, more := f.counted(b, ended)
		switch {
		case more && !ended:
			return nil, 0, false, nil
		case isCounted:
			return message, n, cut, nil
		case f.way == counted && len(b) > 0:
			return nil, 0, false, errFraming
		}
	}
	return f.line(b, ended)
}

// counted returns the message that b begins with if its length stands before it. more tells that it can't be known yet.
func (f *syslogFraming) counted(b []byte, ended bool) (message []byte, n int, cut, isCounted, more bool) {
	digits, length := 0, 0
	for digits < len(b) && digits <= mostLengthDigits && b[digits]-'0' <= 9 {
		length = 10*length + int(b[digits]-'0')
		digits++
	}
	switch {
	case digits == len(b):
		return nil, 0, false, false, digits <= mostLengthDigits
	case digits == 0, digits > mostLengthDigits, b[0] == '0', b[digits] != ' ':
		return nil, 0, false, false, false
	}
	text := b[digits+1:]
	if f.way == unknown {
		// A line may begin with a number, too. A counted message begins with its priority.
		if len(text) == 0 {
			return nil, 0, false, false, true
		}
		if text[0] != '<' {
			return nil, 0, false, false, false
		}
		f.way = counted
	}
	take := min(length, f.most)
	if len(text) < take {
		if !ended {
			return nil, 0, false, true, true
		}
		return text, len(b), true, true, false
	}
	if length > f.most {
		f.skip = length - f.most
	}
	return text[:take], digits + 1 + take, length > f.most, true, false
}

// line returns the message that b begins with if a newline ends it.
func (f *syslogFraming) line(b []byte, ended bool) (message []byte, n int, cut bool, err error) {
	end := bytes.IndexByte(b[f.scanned:], '\n')
	if end >= 0 {
		end += f.scanned
	}
	switch {
	case end > f.most, end < 0 && len(b) > f.most:
		message, n, cut = b[:f.most], f.most, true
	case end >= 0:
		message, n = b[:end], end+1
	case ended && len(b) > 0:
		message, n = b, len(b)
	default:
		f.scanned = len(b)
		return nil, 0, false, nil
	}
	f.scanned = 0
	wasRest := f.isRest
	f.isRest = cut
	if wasRest {
		return nil, n, false, nil
	}
	if f.way == unknown && len(message) > 0 && message[0] == '<' {
		f.way = lines
	}
	return message, n, cut, nil
}
