// Package kiln is the service of what Kiln offers beyond BuildKit's control
// API: why steps ran, the records of the cache, disk usage to the last byte
// and the images that the daemon keeps. The code is generated.
package kiln
