// Package bench measures Millrace as its users would meet it, each figure beside its ceiling: what the same machine
// reaches, in the same run, when the part that is measured does nothing. Product and ceiling take turns in short
// rounds, so that what else the machine does hits both; the ratio of the two is what can be compared.
//
// The benchmarks named Sweep change one thing at a time; make bench leaves them out, make sweep runs them. README.md
// shows what they teach. The services run as processes of their own, on the servers of millrace
// stack.
package bench
