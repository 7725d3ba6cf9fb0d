// Command earthfile is the frontend of Earthfiles as the program of an image: a daemon
// runs it. See frontends/earthfile.
package main

import (
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/frontends/earthfile"
)

func main() { sdk.Main(earthfile.New()) }
