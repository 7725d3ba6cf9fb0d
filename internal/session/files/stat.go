package files

import "github.com/kiln-build/kiln/internal/api/fsutil"

// Stat is an entry of a listing. The name lets those handle entries who do not
// see the wire's packages.
type Stat = fsutil.Stat
