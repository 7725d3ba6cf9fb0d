package dockerfile

// Version is the version of the Dockerfile language, docker/dockerfile's, that
// this frontend reads.
const Version = "1.27.0"
