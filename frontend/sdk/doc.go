// Package sdk is for those who write a frontend: a program that reads a build
// file in a language of its own and has the daemon build what it says.
//
// A frontend is a [frontend.Frontend]; a function is made one by [Func]. The same
// code runs
//
//   - as an image, whose program calls [Main]. A build file whose first line is
//     "# syntax=NAME" is then read by the image NAME, under Kiln as under any
//     BuildKit;
//   - on the client's side, where [BuildFunc] makes it what [client.Client.Build]
//     takes;
//   - in the daemon itself, which takes a [frontend.Frontend] as it is.
//
// [Open] reads a request as users of all frontends make it: the build file, the
// platforms, arguments, labels, the context. [Build.Image] finds a base, the State
// DSL of package llb puts steps upon it, and [Build.Images] returns the result for
// each platform. An error that [File.Errorf] makes shows the place in the file, as
// does that of a step with [Build.Step]. What only works beside a daemon, such as
// containers, is behind [Client].
//
// The image of a frontend needs nothing but the program, linked statically:
//
//	FROM scratch
//	COPY myfrontend /
//	LABEL moby.buildkit.frontend.caps="moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts"
//	LABEL moby.buildkit.frontend.network.none="true"
//	ENTRYPOINT ["/myfrontend"]
//
// While it is being written, "kiln frontend run DIR" runs it without an image, and
// "kiln debug frontend DIR" prints what it asks the daemon for.
package sdk
