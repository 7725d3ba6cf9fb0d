package corpus_test

// features are patterns of all that the language has, by instruction; see the
// reference of the Dockerfile frontend, 1.28.
func features() []string {
	return []string{
		`^FROM --platform=`, `^FROM .* (AS|as) `, `^FROM scratch`,
	}
}
