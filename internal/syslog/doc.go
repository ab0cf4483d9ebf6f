// Package syslog reads syslog messages: those of RFC 5424, those of RFC 3164, and what devices send in their place. It knows no network. The
// doors for syslog and millrace send use it, so that a message becomes the same fields however it comes.
//
// RFC 3164 describes what was in use. It asks senders for nothing but the number in angle brackets at the beginning, and devices have many
// forms of date, host and tag behind it. Parse understands those that are told apart with certainty. What it does not understand is
// text, and no byte of it is lost.
//
// The functions are pure.
package syslog
