//! `resource.Quantity`: exact decimal amounts with decimal and binary suffixes, and their canonical text.
