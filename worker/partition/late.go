package partition

// NoteChangesSQL returns the statement that notes a change in hours that are no longer new. hours is a SELECT that returns them.
// The query service reads there which of its cached answers are out of date.
func NoteChangesSQL(hours string) string {
	return "INSERT INTO late_changes (hour) " + hours + " ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1"
}
