// Command mockerfile is the frontend of Mockerfiles as the program of an image: a daemon
// runs it. See frontends/mockerfile.
package main

import (
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/frontends/mockerfile"
)

func main() { sdk.Main(mockerfile.New()) }
