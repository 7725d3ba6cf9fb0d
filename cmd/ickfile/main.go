// Command ickfile is the frontend of Ickfiles as the program of an image: a daemon
// runs it. See frontends/ickfile.
package main

import (
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/frontends/ickfile"
)

func main() { sdk.Main(ickfile.New()) }
