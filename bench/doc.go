// Package bench measures Millrace as its users would meet it. Each figure stands beside its ceiling: what the same machine
// reaches, in the same run, when the part that is measured does nothing. Product and ceiling take turns in short
// rounds, so that whatever else the machine does hits both. The ratio of the two can be compared with that of other runs.
//
// The benchmarks named Sweep change one thing at a time; make bench leaves them out, make sweep runs them. README.md
// shows what they teach. The services run as processes of their own, on the servers of millrace
// stack.
package bench
