use super::*;
use crate::Matrix;
use crate::cuda::blas::{Direction, ProductShape};
use crate::cuda::product::Products;
use crate::linear;

fn check(device: &Arc<Device>, products: &Products, shape: ProductShape, stream: &mut Stream) {
    let ProductShape { element, rows, outputs, inputs, .. } = shape;
    let (width, depth) = shape.width_and_depth();
    let weight = rounded(stream, element, outputs * inputs);
    let from = rounded(stream, element, rows * depth);
    let start = rounded(stream, element, rows * width);
    let matrix = Matrix::from_f32(&weight, outputs, inputs);
    let mut expected = if shape.accumulate { start.clone() } else { vec![0.0; rows * width] };
    match shape.direction {
        Direction::Forward => {
            let mut product = vec![0.0; rows * width];
            linear::forward(&mut product, &from, &matrix, rows);
            expected.iter_mut().zip(product).for_each(|(e, p)| *e += p);
        }
        Direction::Backward => linear::backward(&mut expected, &from, &matrix, rows),
    }
    let to = match shape.accumulate {
        true => Values::new(device, element, &start),
        false => Values::poisoned(device, element, rows * width),
    };
    let (weight, from) = (Values::new(device, element, &weight), Values::new(device, element, &from));
    products.run(device, shape, [to.ptr(), from.ptr(), weight.ptr()]);
    assert_near(&to.read(), &expected, element, &format!("{shape:?}"));
}

fn check_all(products: &Products, device: &Arc<Device>) {
    let mut stream = Stream::new(31);
    for element in Element::ALL {
        for (rows, outputs, inputs) in
            [(1, 8, 8), (3, 40, 264), (130, 136, 72), (200, 257, 129), (64, 768, 96)]
        {
            for direction in [Direction::Forward, Direction::Backward] {
                for accumulate in [false, true] {
                    let shape = ProductShape { direction, element, rows, outputs, inputs, accumulate };
                    check(device, products, shape, &mut stream);
                }
            }
        }
    }
}

#[test]
fn own_products_equal_the_reference() {
    let Some(device) = device() else { return };
    check_all(&Products::own(), &device);
}

#[test]
fn the_librarys_products_equal_the_reference() {
    let Some(device) = device() else { return };
    let products = Products::open(&device).unwrap();
    assert!(products.library().is_some(), "install cuBLASLt: {}", crate::cuda::Survey::CUBLASLT_INSTALL);
    check_all(&products, &device);
}

#[test]
fn repeated_products_give_the_same_bytes() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(32);
    let (element, rows, outputs, inputs) = (Element::Bf16, 96, 512, 1024);
    for products in [Products::own(), Products::open(&device).unwrap()] {
        for direction in [Direction::Forward, Direction::Backward] {
            let shape = ProductShape { direction, element, rows, outputs, inputs, accumulate: false };
            let (width, depth) = shape.width_and_depth();
            let weight = Values::new(&device, element, &rounded(&mut stream, element, outputs * inputs));
            let from = Values::new(&device, element, &rounded(&mut stream, element, rows * depth));
            let mut runs = (0..3).map(|_| {
                let to = Values::poisoned(&device, element, rows * width);
                products.run(&device, shape, [to.ptr(), from.ptr(), weight.ptr()]);
                to.read()
            });
            let first = runs.next().unwrap();
            assert!(runs.all(|run| run == first), "{shape:?}");
        }
    }
}
