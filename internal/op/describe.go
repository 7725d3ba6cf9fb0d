package op

// Outputs is how many results the operation has; see [solver.Described].
func (b base) Outputs() int { return b.vertex.Op.Outputs() }

// Private tells whether the user keeps the results out of caches of others.
func (b base) Private() bool { return b.vertex.Meta.NoExport }
