// Package store is the metadata database: one bbolt file under the root that
// is the source of truth for what is kept.
package store
