// Command llb is the frontend of build files in LLB as the program of an image: a
// daemon runs it. See frontends/llb.
package main

import (
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/frontends/llb"
)

func main() { sdk.Main(llb.New()) }
