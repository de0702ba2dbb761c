//! The one style of table that reports use.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, Width};

/// An empty table with these columns, wrapped to `width` terminal columns where that breaks no word and no number.
pub fn new(columns: &[&str], width: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    table.set_header(columns.iter().map(|column| Cell::new(*column)).collect::<Vec<_>>());
    table
}

/// When all rows are there: aligns the columns of numbers (from 0) to the right, and sets how narrow each column may get.
/// A number stays on one line with its unit; text is broken between words.
pub fn finish(table: &mut Table, numbers: &[usize]) {
    for column in 0..table.column_count() {
        let is_number = numbers.contains(&column);
        let unbroken = |text: String, whole: bool| match whole {
            true => text.chars().count(),
            false => text.split(' ').map(|word| word.chars().count()).max().unwrap_or(0),
        };
        let cell = |row: &Row| row.cell_iter().nth(column).map(Cell::content).unwrap_or_default();
        let header = table.header().map_or(0, |header| unbroken(cell(header), false));
        let widest = table.row_iter().map(|row| unbroken(cell(row), is_number)).max().unwrap_or(0).max(header);
        let Some(column) = table.column_mut(column) else { continue };
        let width = u16::try_from(widest).unwrap_or(u16::MAX).saturating_add(column.padding_width());
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
        if is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
