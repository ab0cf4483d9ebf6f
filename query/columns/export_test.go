package columns

// KeepFewNumbers has quantiles put equal numbers together once they have so many. restore undoes it.
func KeepFewNumbers(n int) (restore func()) {
	before := fewNumbers
	fewNumbers = n
	return func() { fewNumbers = before }
}
