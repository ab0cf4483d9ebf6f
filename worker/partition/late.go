package partition

import ()

// LateAgainSQL counts another change in an hour that has one.
const LateAgainSQL = ` ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1`
